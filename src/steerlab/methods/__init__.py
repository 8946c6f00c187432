"""Methods turn contrast data into a Steering: one file per method, the file's name is the method's."""
