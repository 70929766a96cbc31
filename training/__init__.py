"""What training needs beside the network: everything that only a training run uses."""
