"""big_vision_lite: how much better does vision get with more data?"""

__version__ = "0.1.0"
