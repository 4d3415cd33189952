//! Package managers in a sandbox, with a server that a rule allows: they find the way out by themselves.

use std::path::Path;
use std::process::Command;

use http::Method;
use serde_json::json;

use crate::egress::{Files, reaching};
use crate::support::{Daemon, bench};

/// A wheel, a package of npm and one of Debian, each with its index, below a directory; the word in all of them is `there`.
const MAKE: &str = r#"
import base64, hashlib, io, json, os, subprocess, sys, tarfile, zipfile
root, url = sys.argv[1:]
def below(*names):
    path = os.path.join(root, *names)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path
wheel = "casemate_demo-1.0-py3-none-any.whl"
with zipfile.ZipFile(below("simple", "casemate-demo", wheel), "w") as made:
    made.writestr("casemate_demo.py", "WORD = 'there'\n")
    made.writestr("casemate_demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: casemate-demo\nVersion: 1.0\n")
    made.writestr("casemate_demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    made.writestr("casemate_demo-1.0.dist-info/RECORD", "")
open(below("simple", "casemate-demo", "index.html"), "w").write(f'<a href="{wheel}">{wheel}</a>')
packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w:gz") as made:
    for name, text in (("package.json", '{"name":"casemate-demo","version":"1.0.0"}'), ("index.js", "module.exports = 'there'")):
        one = tarfile.TarInfo(f"package/{name}")
        one.size = len(text)
        made.addfile(one, io.BytesIO(text.encode()))
open(below("npm", "casemate-demo-1.0.0.tgz"), "wb").write(packed.getvalue())
integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
dist = {"tarball": f"{url}npm/casemate-demo-1.0.0.tgz", "integrity": integrity}
versions = {"1.0.0": {"name": "casemate-demo", "version": "1.0.0", "dist": dist}}
json.dump({"name": "casemate-demo", "dist-tags": {"latest": "1.0.0"}, "versions": versions}, open(below("npm", "casemate-demo"), "w"))
fields = "Package: casemate-demo\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: there\n"
open(below("deb", "DEBIAN", "control"), "w").write(fields)
deb = below("apt", "casemate-demo_1.0_all.deb")
subprocess.run(["dpkg-deb", "--root-owner-group", "--build", os.path.join(root, "deb"), deb], check=True, stdout=subprocess.DEVNULL)
data = open(deb, "rb").read()
sums = f"Filename: ./casemate-demo_1.0_all.deb\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
open(below("apt", "Packages"), "w").write(fields + sums)
"#;

/// A node and its npm, and this machine's apt-get, which the image does not have, with the libraries that it may lack.
const TOOLS: &str = r#"
set -eu
peers=$PWD/target/peers/node_modules
cd "$1"
mkdir lib methods
cp "$peers"/node-linux-*/bin/node node
cp -r "$peers/npm" npm
cp /usr/bin/apt-get apt-get
for method in http store copy file; do cp "/usr/lib/apt/methods/$method" methods/; done
ldd node apt-get methods/* | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | sort -u |
    grep -vE '/(libc|libm|libdl|libpthread|librt|libresolv|ld-linux[^/]*)\.so' | while read -r library; do cp "$library" lib/; done
"#;

fn run(program: &str, words: &[&str]) -> Vec<u8> {
    let done = Command::new(program).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program}: {said}");
    done.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn pip_npm_and_apt_find_the_way_out_by_themselves() {
    let files = Files::new().await;
    let url = files.url("");
    run("python3", &["-c", MAKE, text(files.directory.path()), &url]);
    let tools = tempfile::tempdir_in(&bench().dir).unwrap();
    run("bash", &["-c", TOOLS, "tools", text(tools.path())]);
    let packed = run("tar", &["-C", text(tools.path()), "-cf", "-", "."]);

    let daemon = Daemon::up_with(&[
        ("templates.base.image", json!(bench().notebook)),
        ("templates.base.egress", reaching(&[files.port])),
    ])
    .await;
    let client = daemon.client.clone();
    let id = client.session(json!({})).await;
    let path = format!("/v1/sessions/{id}/archive?path=/tmp/tools");
    let put = client.send(Method::PUT, &path, &[], packed.into()).await;
    put.expect(200);

    let pip = format!(
        "python3 -m pip install --quiet --no-cache-dir --trusted-host 127.0.0.2 --index-url {url}simple --target /tmp/pip casemate-demo &&
         PYTHONPATH=/tmp/pip python3 -c 'import casemate_demo; print(casemate_demo.WORD)'"
    );
    assert_eq!(client.out(&id, &pip).await, "there\n");

    let npm = format!(
        "mkdir /tmp/npm && cd /tmp/npm && export LD_LIBRARY_PATH=/tmp/tools/lib PATH=/tmp/tools:$PATH &&
         node /tmp/tools/npm/bin/npm-cli.js install --silent --no-audit --no-fund --registry {url}npm/ casemate-demo >&2 &&
         node -p 'require(\"casemate-demo\")'"
    );
    assert_eq!(client.out(&id, &npm).await, "there\n");

    let apt = format!(
        "mkdir -p /tmp/apt/lists/partial /tmp/apt/archives/partial /tmp/apt/apt.conf.d && cd /tmp/apt && export LD_LIBRARY_PATH=/tmp/tools/lib &&
         echo 'deb [trusted=yes] {url}apt ./' >sources.list &&
         apt() {{ /tmp/tools/apt-get -qq -o Dir::Etc=/tmp/apt -o Dir::State=/tmp/apt -o Dir::State::lists=/tmp/apt/lists -o Dir::Cache=/tmp/apt \
            -o Dir::State::status=/var/lib/dpkg/status -o Dir::Bin::methods=/tmp/tools/methods -o Debug::NoLocking=true \"$@\" >said 2>&1 || {{ cat said; false; }}; }} &&
         apt update && apt download casemate-demo && unset LD_LIBRARY_PATH && dpkg-deb --field casemate-demo_1.0_all.deb Description"
    );
    assert_eq!(client.out(&id, &apt).await, "there\n");
    client.end(&id).await;
}
