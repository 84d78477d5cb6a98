"""Things to look at: plans, equations, health, points looked ahead to."""
