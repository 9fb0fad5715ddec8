"""The judge: the only room that knows who is a member."""
