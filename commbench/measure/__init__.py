"""One rank at work: a launch, its cases, the timing loop."""
