"""The workbench: training small networks on real images, to see what an optimizer does.

It uses the public names of ``gradtx`` only, and nothing in the library uses it; ``python -m gradtx`` does. Loading the
digits, tables and pictures need the extra ``gradtx[demo]``; networks and training do not.
"""
