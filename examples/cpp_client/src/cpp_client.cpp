// Asks the mask2iv node for a plan, prints its progress and where the object will go.
//
//   ros2 run mask2iv_cpp_client cpp_client --ros-args -p task:="open the drawer"

#include <chrono>
#include <iostream>
#include <memory>
#include <rclcpp/rclcpp.hpp>
#include <rclcpp_action/rclcpp_action.hpp>
#include <string>

#include <mask2iv_ros/action/generate_interaction.hpp>

#include "plan.hpp"

using GenerateInteraction = mask2iv_ros::action::GenerateInteraction;

int main(int argc, char ** argv)
{
  rclcpp::init(argc, argv);
  const auto node = std::make_shared<rclcpp::Node>("mask2iv_cpp_client");
  const auto task = node->declare_parameter<std::string>("task", "open the drawer");
  const auto client =
    rclcpp_action::create_client<GenerateInteraction>(node, "mask2iv/generate_interaction");
  if (!client->wait_for_action_server(std::chrono::seconds(60))) {
    RCLCPP_ERROR(node->get_logger(), "The mask2iv node is not there");
    return 1;
  }

  GenerateInteraction::Goal goal;
  goal.request = make_request(task);
  rclcpp_action::Client<GenerateInteraction>::SendGoalOptions options;
  options.feedback_callback =
    [&node](auto, const std::shared_ptr<const GenerateInteraction::Feedback> feedback) {
      RCLCPP_INFO(
        node->get_logger(), "%s %.0f %%", feedback->stage.c_str(), 100 * feedback->fraction);
    };
  auto accepted = client->async_send_goal(goal, options);
  if (rclcpp::spin_until_future_complete(node, accepted) != rclcpp::FutureReturnCode::SUCCESS) {
    return 1;
  }
  const auto handle = accepted.get();
  if (!handle) {
    RCLCPP_ERROR(node->get_logger(), "The goal was rejected");
    return 1;
  }
  auto finished = client->async_get_result(handle);
  if (rclcpp::spin_until_future_complete(node, finished) != rclcpp::FutureReturnCode::SUCCESS) {
    return 1;
  }
  const auto result = finished.get().result;
  if (result->error_code != GenerateInteraction::Result::NONE || result->plans.empty()) {
    RCLCPP_ERROR(
      node->get_logger(), "No plan, error %d: %s", result->error_code, result->error_msg.c_str());
    return 1;
  }
  std::cout << describe(result->plans.front());  // the best
  rclcpp::shutdown();
  return 0;
}
