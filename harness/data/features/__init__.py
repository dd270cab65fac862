"""What a frozen vision tower made of images and videos, kept on disk for the next epoch, trial and process."""
