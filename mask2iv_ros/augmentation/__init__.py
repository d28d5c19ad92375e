"""New demonstrations from recorded ones: other looks or other motion, measured, then written."""
