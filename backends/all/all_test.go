package all_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/backends/all"
)

// Every driver says what it is, and has its page.
func TestDrivers(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range all.Drivers() {
		if d.Scheme == "" || d.Scheme != strings.ToLower(d.Scheme) || strings.ContainsAny(d.Scheme, ":/= ") {
			t.Errorf("scheme %q", d.Scheme)
		}
		if seen[d.Scheme] {
			t.Errorf("there are two drivers %q", d.Scheme)
		}
		seen[d.Scheme] = true
		if d.Summary == "" || strings.Contains(d.Summary, "\n") || d.Dial == nil {
			t.Errorf("%s: summary %q, or no Dial", d.Scheme, d.Summary)
		}
		page, err := os.ReadFile(filepath.Join(root, "docs", "backends", d.Scheme+".md"))
		if err != nil {
			t.Errorf("%s has no page: %v", d.Scheme, err)
		}
		names := map[string]bool{}
		for _, o := range d.Options {
			if o.Name == "" || o.Usage == "" || names[o.Name] {
				t.Errorf("%s: option %+v has no name or usage, or another has its name", d.Scheme, o)
			}
			names[o.Name] = true
			if !strings.HasPrefix(o.Env, "SREGISTRY_") && !strings.HasPrefix(o.Env, "AWS_") && !strings.HasPrefix(o.Env, "GOOGLE_") {
				t.Errorf("%s: option %s has the environment name %q", d.Scheme, o.Name, o.Env)
			}
			if !strings.Contains(string(page), o.Env) {
				t.Errorf("docs/backends/%s.md does not tell of %s", d.Scheme, o.Env)
			}
		}
	}
}
