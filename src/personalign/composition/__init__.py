"""From choices to one legal composition, without torch: read, checked, named, built."""
