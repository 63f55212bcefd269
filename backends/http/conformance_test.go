package httpindex

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/backendtest"
)

// server starts a web server on a folder and tells the address of it.
type server func(t testing.TB, f *folder) (base string, requests func() int)

func harness(serve server, settings map[string]string, after func(f *folder) error) backendtest.Harness {
	return backendtest.Harness{
		New: func(t testing.TB) backendtest.Store {
			f := newFolder(t)
			if err := after(f); err != nil {
				t.Fatal(err)
			}
			base, requests := serve(t, f)
			b, log := dialTest(t, base, settings)
			return backendtest.Store{
				Backend: b,
				Seed: func(ref backends.Ref, data []byte) error {
					if err := f.put(fileOf(ref), data); err != nil {
						return err
					}
					return after(f)
				},
				Remove: func(ref backends.Ref) error {
					if err := os.Remove(filepath.Join(f.path, fileOf(ref))); err != nil {
						return err
					}
					return after(f)
				},
				Reopen: func(t testing.TB) backends.Backend {
					b, _ := dialTest(t, base, settings)
					return b
				},
				Requests: requests,
				Secrets:  []string{"canary-http-password", "Y2FuYXJ5LWh0dHAtcGFzc3dvcmQ", "OmNhbmFyeS1odHRwLXBhc3N3b3Jk", "pjYW5hcnktaHR0cC1wYXNzd29yZ"},
				Log:      log.String,
			}
		},
	}
}

func nothing(*folder) error { return nil }

func nginxAt(path string) server {
	return func(t testing.TB, f *folder) (string, func() int) { return nginx(t, f) + path, nil }
}

func TestConformanceGo(t *testing.T) {
	backendtest.Run(t, harness(goServer, nil, nothing))
}

func TestConformanceNginx(t *testing.T) {
	for _, path := range []string{"/", "/json/", "/rounded/", "/noetag/"} {
		t.Run(path, func(t *testing.T) {
			backendtest.Run(t, harness(nginxAt(path), nil, nothing))
		})
	}
	t.Run("private", func(t *testing.T) {
		backendtest.Run(t, harness(nginxAt("/private/"), map[string]string{
			"SREGISTRY_HTTP_USERNAME": "user", "SREGISTRY_HTTP_PASSWORD": "canary-http-password",
		}, nothing))
	})
}

// TestConformanceList: a server without an index, and a list with sizes and
// digests in its place.
func TestConformanceList(t *testing.T) {
	list := func(f *folder) error {
		var text bytes.Buffer
		err := filepath.WalkDir(f.path, func(name string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(f.path, name)
			if err != nil || d.IsDir() || rel == "images.txt" {
				return err
			}
			data, err := os.ReadFile(name)
			fmt.Fprintf(&text, "%s\t%d\t%x\n", filepath.ToSlash(rel), len(data), sha256.Sum256(data))
			return err
		})
		if err != nil {
			return err
		}
		return f.put("images.txt", text.Bytes())
	}
	h := harness(nginxAt("/noindex/"), map[string]string{"SREGISTRY_HTTP_LIST": "images.txt"}, list)
	h.Fits = func(ref backends.Ref) bool { return !strings.ContainsAny(ref.String(), "\t\n") }
	backendtest.Run(t, h)
}
