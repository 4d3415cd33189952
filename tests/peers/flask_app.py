"""An application of Flask in a session, behind the proxy that casemated is to it: people sign in, send a file, and are led on."""

import hashlib

from flask import Flask, redirect, request, session, url_for
from werkzeug.middleware.proxy_fix import ProxyFix

app = Flask(__name__)
app.secret_key = "of the test"
app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_port=1, x_prefix=1)


@app.get("/")
def home():
    return {"who": session.get("who"), "at": url_for("home", _external=True), "from": request.remote_addr}


@app.post("/login")
def login():
    session["who"] = request.form["who"]
    return redirect(url_for("home", _external=True))


@app.post("/upload")
def upload():
    file = request.files["file"]
    return {"name": file.filename, "sha256": list(hashlib.sha256(file.read()).digest())}


@app.get("/count/<int:number>")
def count(number):
    return (f"{n}\n" for n in range(number))


app.run("127.0.0.1", 8000, threaded=True)
