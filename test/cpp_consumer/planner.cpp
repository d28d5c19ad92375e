#include <cstdio>
#include <mask2iv_ros/action/generate_interaction.hpp>
#include <mask2iv_ros/srv/export_demonstration.hpp>
#include <mask2iv_ros/srv/generate_interaction.hpp>

int main()
{
  mask2iv_ros::srv::GenerateInteraction::Request request;
  request.request.task = "open the drawer";
  request.request.goal_pixel.resize(1);

  mask2iv_ros::action::GenerateInteraction::Goal goal;
  goal.request = request.request;

  mask2iv_ros::action::GenerateInteraction::Result result;
  result.plans.resize(1);
  mask2iv_ros::srv::ExportDemonstration::Request keep;
  keep.plan_ids.push_back(result.plans[0].id);

  std::printf("%s %d %d\n", goal.request.task.c_str(), result.plans[0].contact_frame,
    mask2iv_ros::srv::GenerateInteraction::Response::QUEUE_FULL);
  return 0;
}
