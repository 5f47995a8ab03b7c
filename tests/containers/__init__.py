"""Do container engines run over pyoverlay?"""
