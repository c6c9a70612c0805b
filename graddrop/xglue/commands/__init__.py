"""The command line, one file a command, `run(args) -> int`; their arguments are in one file."""
