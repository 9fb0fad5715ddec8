"""fedsim: what could another participant of a federation learn about who is in my data?"""

__version__ = "0.1.0"
