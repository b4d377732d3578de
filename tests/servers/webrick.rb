# WEBrick: counts what it is asked, and the bytes of a body.
require "webrick"

count = 0
server = WEBrick::HTTPServer.new(Port: 8000, BindAddress: "127.0.0.1", AccessLog: [])
server.mount_proc("/") do |request, response|
  count += 1
  response.body = "count #{count} bytes #{(request.body || "").bytesize}\n"
end
server.start
