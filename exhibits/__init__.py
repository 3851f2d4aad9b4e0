"""What goes wrong where one may not try it: on throw-away data, from real servers."""
