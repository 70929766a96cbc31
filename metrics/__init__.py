"""Speech-quality metrics (PESQ, STOI, composite measures, SI-SDR) of signals and files, and their statistics."""
