"""Write a data set as shards of resized images."""
