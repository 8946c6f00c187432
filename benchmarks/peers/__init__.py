"""What is measured against: other people's loops, unmodified from their packages or transcribed and named so."""
