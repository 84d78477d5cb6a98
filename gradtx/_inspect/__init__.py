"""What one looks at: plans, equations, health, points looked ahead to."""
