// What a planner says to mask2iv_ros and reads from its plans; needs the generated headers alone.
#pragma once

#include <cstddef>
#include <mask2iv_ros/msg/frame_motion.hpp>
#include <mask2iv_ros/msg/interaction_plan.hpp>
#include <mask2iv_ros/msg/interaction_request.hpp>
#include <mask2iv_ros/msg/mask_trajectory.hpp>
#include <sstream>
#include <string>

// A request that leaves image and masks to the node's topics.
inline mask2iv_ros::msg::InteractionRequest make_request(const std::string & task)
{
  mask2iv_ros::msg::InteractionRequest request;
  request.task = task;
  return request;
}

// Pixels of the object in frame i of the plan.
inline std::size_t object_pixels(const mask2iv_ros::msg::InteractionPlan & plan, std::size_t i)
{
  using Labels = mask2iv_ros::msg::MaskTrajectory;
  const auto & image = plan.masks.frames.at(i);
  std::size_t count = 0;
  for (std::size_t y = 0; y < image.height; ++y) {
    for (std::size_t x = 0; x < image.width; ++x) {
      const auto label = image.data[y * image.step + x];
      count += label == Labels::OBJECT || label == Labels::PART;
    }
  }
  return count;
}

// The plan in a few lines. object_path is empty without depth, and motion where the node measured none.
inline std::string describe(const mask2iv_ros::msg::InteractionPlan & plan)
{
  std::ostringstream text;
  text << "'" << plan.task << "' by " << plan.model << ": " << plan.masks.frames.size() <<
    " frames, object of " << object_pixels(plan, 0) << " pixels, contact in frame " <<
    plan.contact_frame << "\n";
  for (std::size_t i = 0; i < plan.object_path.poses.size(); ++i) {
    const auto & position = plan.object_path.poses[i].pose.position;
    const bool moves = i < plan.motion.size() &&
      plan.motion[i].phase == mask2iv_ros::msg::FrameMotion::INTERACT;
    text << "  " << i * plan.masks.frame_period << " s: " << position.x << " " << position.y << " " <<
      position.z << " m" << (moves ? ", moves\n" : "\n");
  }
  return text.str();
}
