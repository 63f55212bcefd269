package registry

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/secrets"
)

// The vectors were made with the Python client's own functions.
func TestSignature(t *testing.T) {
	c := credentials{user: "vsoch", token: secrets.NewSecret("0123456789abcdef0123456789abcdef01234567")}
	hour := time.Date(2026, 11, 22, 18, 59, 59, 0, time.FixedZone("", 3600))
	for kind, want := range map[string]string{
		"push":   "3fdb9436b6bf218c6662d61aa7ca0cfbc3faecf12c15122552ec3b56b464fc6c",
		"upload": "e7a132375b76b06810e3858a93e0b667b39837d5659ff562e85366c41c51420d",
		"pull":   "3a4e03dd1205bc39de5b623fe0de75e952eb69d8c8ae864c95259151ad7429cd",
		"delete": "2aaa0aa5ec0fab5b0f92e9ee225aa05f5bd4b0cb73e8c1d13a307be027b67610",
	} {
		header := "SREGISTRY-HMAC-SHA256 Credential=" + kind + "/dnNvY2g=/20261122T17Z,Signature=" + want
		if got := c.sign(kind, "dino", "tacos", "latest", hour); got != header {
			t.Errorf("%s:\n got %s\nwant %s", kind, got, header)
		}
	}
}

func TestCredentialsThatCannotSign(t *testing.T) {
	token := secrets.NewSecret("x")
	for _, c := range []credentials{{}, {user: "a"}, {token: token}, {user: "???", token: token}} {
		if err := c.check("push", backends.Ref{}); backends.KindOf(err) != backends.Denied || backends.HintOf(err) == "" {
			t.Errorf("%q: %v", c.user, err)
		}
	}
	if err := (credentials{user: "vsoch", token: token}).check("push", backends.Ref{}); err != nil {
		t.Error(err)
	}
}

func TestCollectionName(t *testing.T) {
	for in, want := range map[string]string{
		"dino": "dino", "My_New.Coll": "my-new-coll", "--a--b--": "a-b", "Ünï": "n", "___": "", "\u212a": "", "a/b": "a-b",
	} {
		if got := collectionName(in); got != want {
			t.Errorf("%q gave %q, want %q", in, got, want)
		}
	}
}

func TestPushRef(t *testing.T) {
	for _, c := range []struct{ in, want backends.Ref }{
		{backends.Ref{Collection: "My_New.Coll", Image: "Tool", Tag: "V1.0_a+b"}, backends.Ref{Collection: "my-new-coll", Image: "tool", Tag: "v1.0_a+b"}},
		{backends.Ref{Collection: "dino", Image: "sif", Tag: "simg"}, backends.Ref{Collection: "dino", Image: "sif", Tag: "simg"}},
	} {
		if got, err := pushRef(c.in); err != nil || got != c.want {
			t.Errorf("%v gave %v, %v", c.in, got, err)
		}
	}
	for _, ref := range []backends.Ref{
		{},
		{Collection: "dino"},
		{Collection: "a/b", Image: "tool", Tag: "1"},
		{Collection: "___", Image: "tool", Tag: "1"},
		{Collection: "dino", Image: "tool", Tag: "v1.sif2"},
		{Collection: "dino", Image: "tool", Tag: "v1.SIF"},
		{Collection: "dino", Image: "tool.img", Tag: "1"},
		{Collection: "dino", Image: "tool", Tag: "a:b"},
		{Collection: "dino", Image: "tool", Tag: "DUMMY-01234567-89ab-4cde-8f01-23456789abcd"},
		{Collection: "dino", Image: "../tool", Tag: "1"},
	} {
		if _, err := pushRef(ref); backends.KindOf(err) != backends.Invalid {
			t.Errorf("%v: %v", ref, err)
		}
	}
}

func TestAddressOfBuilds(t *testing.T) {
	ref := refOf("user/repo", "user/repo", "1")
	if ref != (backends.Ref{Collection: "user/repo", Image: "repo", Tag: "1"}) || storedName(ref) != "user/repo" {
		t.Errorf("%+v is stored as %q", ref, storedName(ref))
	}
	if got := strings.Join(addressOf(ref), "/"); got != "user/repo:1" {
		t.Errorf("address %q", got)
	}
	if got := strings.Join(addressOf(backends.Ref{Collection: "dino", Image: "dino", Tag: "1"}), "/"); got != "dino/dino:1" {
		t.Errorf("address %q", got)
	}
}

func TestParseRoot(t *testing.T) {
	for in, want := range map[string]string{
		"https://reg.example.org":         "https://reg.example.org",
		"https://reg.example.org/":        "https://reg.example.org",
		"https://reg.example.org/api":     "https://reg.example.org",
		"https://reg.example.org/api/":    "https://reg.example.org",
		"https://reg.example.org/sub/api": "https://reg.example.org/sub",
		"reg.example.org:8080":            "http://reg.example.org:8080",
		"//reg.example.org":               "http://reg.example.org",
	} {
		u, err := parseRoot(in, "http")
		if err != nil || u.String() != want {
			t.Errorf("%q gave %v, %v", in, u, err)
		}
	}
	for _, in := range []string{"", "ftp://x", "https://", "https://u:canary@h", "https://h?x=canary", "https://h/%zz"} {
		if _, err := parseRoot(in, "https"); backends.KindOf(err) != backends.Invalid || strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestSecretOfAnAddress(t *testing.T) {
	for in, want := range map[string]string{
		"https://reg/containers/1/download/2387b572-2a85":  "2387b572-2a85",
		"https://reg/containers/1/download/2387b572-2a85/": "2387b572-2a85",
		"https://reg/sub/containers/1/download/x":          "x",
		"https://storage.example/signed?x=containers/1":    "",
		"": "",
	} {
		if got := collectionSecret(in); got != want {
			t.Errorf("%q gave %q", in, got)
		}
	}
}

func TestDispositionNames(t *testing.T) {
	ref := backends.Ref{Collection: "dino", Image: "tacos", Tag: "1"}
	for in, want := range map[string]bool{
		`attachment; filename="dino-tacos:1.sif"`:                                true,
		`attachment; filename="dino-tacos:0123456789abcdef0123456789abcdef.sif"`: true,
		`attachment; filename="dino-tacos:2.sif"`:                                false,
		`attachment; filename="dino-other:1.sif"`:                                false,
		``: false,
	} {
		if names(in, ref) != want {
			t.Errorf("%q: %v", in, !want)
		}
	}
	if !names(`attachment; filename="user-repo:1.sif"`, refOf("user/repo", "user/repo", "1")) {
		t.Error("a build's name")
	}
}

func TestUploadHour(t *testing.T) {
	at := func(min, sec int) time.Time { return time.Date(2026, 1, 1, 10, min, sec, 0, time.UTC) }
	for _, c := range []struct {
		name string
		now  time.Time
		size int64
		rate int64
		hour int
		wait time.Duration
	}{
		{"plenty of time", at(10, 0), 1 << 30, 0, 10, 0},
		{"just before the hour", at(59, 58), 10, 0, 11, 3 * time.Second},
		{"a big one before the hour", at(59, 0), 1 << 30, 0, 11, 61 * time.Second},
		{"measured to be slow", at(50, 0), 1 << 30, 1 << 20, 11, 601 * time.Second},
		{"longer than an hour", at(30, 0), 6 << 30, 1 << 20, 12, 0},
	} {
		var waited time.Duration
		b := &registry{now: func() time.Time { return c.now }}
		b.rate.Store(c.rate)
		b.sleep = func(_ context.Context, d time.Duration) error { waited = d; return nil }
		hour, err := b.uploadHour(t.Context(), c.size)
		if err != nil || hour.Hour() != c.hour || waited != c.wait {
			t.Errorf("%s: signed for %v after %v, %v", c.name, hour, waited, err)
		}
	}
}
