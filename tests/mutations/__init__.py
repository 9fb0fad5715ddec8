"""The mutation proof: known bugs of DP-SGD planted in the real code, and what catches them."""
