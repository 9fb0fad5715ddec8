"""Federations between organisations: a folder for the server and one for each party's node."""
