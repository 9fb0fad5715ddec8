"""What a person sees in the shell."""
