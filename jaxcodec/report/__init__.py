"""The page to listen on: what it shows (`content`) and its HTML (`webpage`)."""
