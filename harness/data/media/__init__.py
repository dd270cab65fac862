"""Images and videos: references, sizes from headers, and pixels."""
