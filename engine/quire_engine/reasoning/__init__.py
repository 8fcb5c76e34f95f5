"""What models think before they answer. Pure: text in, two texts out."""
