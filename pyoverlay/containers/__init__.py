"""How do container engines use pyoverlay, beyond calling it as a mount program?"""
