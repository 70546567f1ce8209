"""Image-text pairs: readers of the common layouts, and the prepared corpus that training reads."""
