"""Speech-quality measures (PESQ, STOI, composite, SI-SDR) of signals, files and folders; no models."""
