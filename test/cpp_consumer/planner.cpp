// Calls the node's service with the C++ types and prints the answer.

#include <chrono>
#include <iostream>
#include <mask2iv_ros/action/generate_interaction.hpp>
#include <mask2iv_ros/srv/export_demonstration.hpp>
#include <mask2iv_ros/srv/generate_interaction.hpp>
#include <rcl/error_handling.h>
#include <rcl/graph.h>
#include <rcl/rcl.h>
#include <rosidl_typesupport_cpp/service_type_support.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>

#include "plan.hpp"

using Service = mask2iv_ros::srv::GenerateInteraction;
using Action = mask2iv_ros::action::GenerateInteraction;

static_assert(std::is_same_v<decltype(Action::Goal::request), decltype(Service::Request::request)>);
static_assert(std::is_same_v<decltype(Action::Result::plans), decltype(Service::Response::plans)>);
static_assert(Action::Result::QUEUE_FULL == 10 && Service::Response::QUEUE_FULL == 10);
static_assert(mask2iv_ros::srv::ExportDemonstration::Response::DISK_FULL == 5);

static void check(rcl_ret_t result)
{
  if (result != RCL_RET_OK) {
    throw std::runtime_error(rcl_get_error_string().str);
  }
}

static Service::Response call(const Service::Request & request)
{
  const auto allocator = rcl_get_default_allocator();
  auto options = rcl_get_zero_initialized_init_options();
  check(rcl_init_options_init(&options, allocator));
  auto context = rcl_get_zero_initialized_context();
  check(rcl_init(0, nullptr, &options, &context));
  auto node = rcl_get_zero_initialized_node();
  const auto node_options = rcl_node_get_default_options();
  check(rcl_node_init(&node, "cpp_planner", "", &context, &node_options));
  auto client = rcl_get_zero_initialized_client();
  const auto client_options = rcl_client_get_default_options();
  check(rcl_client_init(
    &client, &node, rosidl_typesupport_cpp::get_service_type_support_handle<Service>(),
    "/mask2iv/generate_interaction", &client_options));

  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (bool available = false; !available; ) {
    check(rcl_service_server_is_available(&node, &client, &available));
    if (std::chrono::steady_clock::now() > deadline) {
      throw std::runtime_error("the node is not there");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  int64_t number = 0;
  check(rcl_send_request(&client, &request, &number));
  auto waiting = rcl_get_zero_initialized_wait_set();
  check(rcl_wait_set_init(&waiting, 0, 0, 0, 1, 0, 0, &context, allocator));
  check(rcl_wait_set_add_client(&waiting, &client, nullptr));
  check(rcl_wait(&waiting, RCL_S_TO_NS(30)));
  rmw_request_id_t header{};
  Service::Response response;
  check(rcl_take_response(&client, &header, &response));

  check(rcl_wait_set_fini(&waiting));
  check(rcl_client_fini(&client, &node));
  check(rcl_node_fini(&node));
  check(rcl_shutdown(&context));
  check(rcl_context_fini(&context));
  check(rcl_init_options_fini(&options));
  return response;
}

// Returns 0, 1 for a refusal, 2 for anything else.
extern "C" int plan(const char * task)
{
  Service::Request request;
  request.request = make_request(task);
  try {
    const auto response = call(request);
    if (response.error_code != Service::Response::NONE) {
      std::cout << "error " << response.error_code << ": " << response.error_msg << std::endl;
      return 1;
    }
    std::cout << describe(response.plans.at(0)) << std::flush;
  } catch (const std::exception & error) {
    std::cerr << error.what() << std::endl;
    return 2;
  }
  return 0;
}
