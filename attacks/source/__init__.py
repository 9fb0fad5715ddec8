"""Source inference: which party holds a record?"""
