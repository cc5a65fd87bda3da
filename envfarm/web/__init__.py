"""A small real web: HTTP servers over sockets that nobody else can reach, and a text browser. For web environments."""
