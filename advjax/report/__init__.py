"""Pages, charts and pictures of data that they are given; a page loads nothing."""
