"""Where users, histories, requests and pairs come from."""
