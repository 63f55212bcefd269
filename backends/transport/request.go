package transport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

const (
	// defaultMaxBody bounds an answer that is held in memory.
	defaultMaxBody = 16 << 20
	// errorBody bounds what is read of a failed answer to a streamed request.
	errorBody = 64 << 10
)

// Request is one exchange with the registry, retries and redirects included.
type Request struct {
	Op     string       // for errors: "list", "stat", "open", …
	Ref    backends.Ref // for errors
	Method string       // empty means GET
	URL    *url.URL     // absolute; any origin; user information is not sent
	Header http.Header  // not changed; not sent on to another origin after a redirect, but for what ranges and content types need

	// Body gives the request's body from its start, each time it is called.
	// Length is its exact length in bytes; negative means not known.
	Body   func() (io.ReadCloser, error)
	Length int64

	// MaxBody bounds the answer of Do and JSON in bytes; 0 means 16 MiB.
	MaxBody int64
	// Timeout bounds the wait for the answer's first byte, counted from the
	// last byte sent; 0 means 30 seconds, or 5 minutes after a body over 1 MiB.
	Timeout time.Duration
	// NoRetry sends it once. POST and PATCH are sent once anyway, unless
	// Idempotent says that repeating them is harmless.
	NoRetry, Idempotent bool
	// NoAuth sends it without credentials, and a 401 renews nothing.
	NoAuth bool
	// NoFollow hands a redirect to the caller as if it were a success.
	NoFollow bool
	// SecretPath keeps the URL's path out of the log: it is a credential.
	SecretPath bool
	// Check looks at a good answer's header before its body is read; its
	// error ends the request and is returned as it is.
	Check func(status int, header http.Header) error
}

// Do sends a request and reads the whole answer. An answer outside 2xx is an
// error, as Options.Classify or the default by status makes it.
func (c *Client) Do(ctx context.Context, r Request) (status int, header http.Header, body []byte, err error) {
	err = c.run(ctx, r, func(a *answer) *failure {
		defer a.close()
		status, header = a.resp.StatusCode, a.resp.Header
		var f *failure
		body, f = a.read(r)
		return f
	})
	if err != nil {
		return 0, nil, nil, err
	}
	return status, header, body, nil
}

// JSON sends a request and decodes the answer into out, which may be nil. A
// 2xx answer that Classify finds to be a failure is that failure; one that is
// no JSON is Unavailable.
func (c *Client) JSON(ctx context.Context, r Request, out any) error {
	if r.Header.Get("Accept") == "" {
		r.Header = r.Header.Clone()
		if r.Header == nil {
			r.Header = http.Header{}
		}
		r.Header.Set("Accept", "application/json")
	}
	return c.run(ctx, r, func(a *answer) *failure {
		defer a.close()
		body, f := a.read(r)
		if f != nil {
			return f
		}
		if c.o.Classify != nil {
			if err := c.o.Classify(r.Op, r.Ref, a.resp.StatusCode, a.resp.Header, body); err != nil {
				return c.failed(err, a.resp.StatusCode, a.resp.Header)
			}
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(body, out); err != nil {
			return final(r, backends.Unavailable, fmt.Errorf("the answer (%s) is not the JSON expected: %w", mediaType(a.resp.Header), jsonFault(err)))
		}
		return nil
	})
}

// Head asks for the headers alone. size is what a GET would send, or
// UnknownSize.
func (c *Client) Head(ctx context.Context, r Request) (header http.Header, size int64, err error) {
	r.Method = http.MethodHead
	err = c.run(ctx, r, func(a *answer) *failure {
		header, size = a.resp.Header, a.resp.ContentLength
		a.close()
		return nil
	})
	if err != nil {
		return nil, backends.UnknownSize, err
	}
	if size < 0 {
		size = backends.UnknownSize
	}
	return header, size, nil
}

// Upload sends src as the request's body and reads the answer like Do. Body
// and Length of r are set here; an empty Method means PUT. report may be nil;
// it gets the bytes handed to the connection so far, and starts from 0 again
// when a retry does.
func (c *Client) Upload(ctx context.Context, r Request, src backends.Source, report func(sent int64)) (status int, header http.Header, body []byte, err error) {
	if r.Method == "" {
		r.Method = http.MethodPut
	}
	r.Length = src.Size()
	r.Body = func() (io.ReadCloser, error) {
		section := io.NewSectionReader(src, 0, src.Size())
		return io.NopCloser(&reporting{r: section, report: report}), nil
	}
	return c.Do(ctx, r)
}

type reporting struct {
	r      io.Reader
	sent   int64
	report func(int64)
}

func (r *reporting) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if n > 0 && r.report != nil {
		r.sent += int64(n)
		r.report(r.sent)
	}
	return n, err
}

// read gives the whole body of an answer, within r.MaxBody.
func (a *answer) read(r Request) ([]byte, *failure) {
	limit := r.MaxBody
	if limit <= 0 {
		limit = defaultMaxBody
	}
	if f := a.encoded(r); f != nil {
		return nil, f
	}
	body, err := io.ReadAll(io.LimitReader(a.body, limit+1))
	if err != nil {
		return nil, &failure{err: err}
	}
	if int64(len(body)) > limit {
		return nil, final(r, backends.Unavailable, fmt.Errorf("the answer is longer than %d bytes", limit))
	}
	return body, nil
}

// encoded refuses a body in an encoding nobody asked for: its length would
// not be the content's.
func (a *answer) encoded(r Request) *failure {
	switch a.resp.Header.Get("Content-Encoding") {
	case "", "identity":
		return nil
	}
	return final(r, backends.Unavailable, errors.New("the answer is compressed although that was not asked for"))
}

// jsonFault keeps the position and the type from a decoding error and leaves
// out the value, which may be a credential.
func jsonFault(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("syntax error at byte %d", syntax.Offset)
	case errors.As(err, &kind):
		return fmt.Errorf("field %q is a %s", kind.Field, jsonType(kind.Value))
	}
	return errors.New("it does not fit")
}

// jsonType cuts "number 123" to "number".
func jsonType(value string) string {
	for i, c := range value {
		if c == ' ' {
			return value[:i]
		}
	}
	return value
}

func mediaType(h http.Header) string {
	t := h.Get("Content-Type")
	for i, c := range t {
		if c == ';' || c < ' ' || c > '~' {
			t = t[:i]
			break
		}
	}
	if t == "" || len(t) > 80 {
		return "of no stated type"
	}
	return t
}
