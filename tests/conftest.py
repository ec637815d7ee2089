pytest_plugins = ["fixtures_trained"]
