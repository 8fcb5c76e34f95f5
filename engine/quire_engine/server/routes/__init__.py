"""The endpoints, a file for each kind. They check and hand over; the work is done elsewhere."""
