"""What every chapter works with. Nothing here knows any technique; techniques import from here."""
