"""The places of states: over the devices of a mesh, and in which memory."""
