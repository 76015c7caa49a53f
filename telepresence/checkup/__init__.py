"""What `telepresence doctor` looks at, a module a part of the machine."""
