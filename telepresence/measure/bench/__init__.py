"""How `telepresence bench` and the tools measure: time, memory, stages, display beside training, other libraries."""
