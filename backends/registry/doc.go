// Package registry is the backend for Singularity Registry Server, the
// Django application behind self-hosted registries (protocol as of version 2.1.2).
//
// The server shapes the backend. It counts: 50 views of records and 50
// downloads a day and address, 100 API requests without a token, 100
// downloads a week of one image. So a listing takes two requests and tells
// everything but the size, and nothing asks twice. It sends whole files only,
// and a record's download address is a secret that opens all of its collection.
// So there are no ranges, and that address lives in memory alone. It answers
// refusals with status 200 or 500, loses an image that is pushed twice, and
// acknowledges uploads that it throws away. So a push compares before and after.
package registry
