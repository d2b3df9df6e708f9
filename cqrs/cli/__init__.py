"""The command line: one module for each group of commands. Heavy libraries load in the commands that need them."""
