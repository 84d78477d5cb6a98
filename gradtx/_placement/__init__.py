"""Where states are: over the devices of a mesh, and in which memory."""
