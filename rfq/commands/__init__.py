"""One file a command: its arguments, a frozen dataclass, and what it does with them."""
