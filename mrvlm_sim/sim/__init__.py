"""The simulator: arm, scene, cameras and the Gymnasium environment that all tasks share."""
