"""What every release for the Hub shares: checksums, cards, licences, upload."""
