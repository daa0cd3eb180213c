"""The studio: a view of run directories in the browser, and nothing else.

    serve    starts the server           safety   who may ask, and which files may be read
    place    the runs folder shown       words    English and 简体中文
    shell    what every page has         pages/   one module a page; the view of its data, without NiceGUI, beside it

Stages are started as processes of the command line and outlive the studio; what they do is read from their run
directories, so closing, reloading or restarting the studio changes nothing. Needs the extra `studio`.
"""
